// Java, asked whether it accepts what a server shows: HOST PORT CA-FILE.
import java.io.FileInputStream;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.Socket;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.util.Collections;
import java.util.List;
import javax.net.ssl.SNIHostName;
import javax.net.ssl.SNIServerName;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

class VerifyWithJava {
    public static void main(String[] arguments) throws Exception {
        String host = arguments[0];
        KeyStore roots = KeyStore.getInstance(KeyStore.getDefaultType());
        roots.load(null, null);
        if (arguments[2].endsWith(".p12")) {
            try (InputStream file = new FileInputStream(arguments[2])) {
                roots = KeyStore.getInstance("PKCS12");
                roots.load(file, "changeit".toCharArray());
            }
        } else {
            try (InputStream file = new FileInputStream(arguments[2])) {
                int number = 0;
                for (Certificate root : CertificateFactory.getInstance("X.509").generateCertificates(file)) {
                    roots.setCertificateEntry("root-" + number++, root);
                }
            }
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(roots);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        Socket plain = new Socket(InetAddress.getByName("127.0.0.1"), Integer.parseInt(arguments[1]));
        plain.setSoTimeout(20_000);
        SSLSocket socket = (SSLSocket) context.getSocketFactory()
                .createSocket(plain, host, Integer.parseInt(arguments[1]), true);
        SSLParameters parameters = socket.getSSLParameters();
        parameters.setEndpointIdentificationAlgorithm("HTTPS");
        List<SNIServerName> names = Collections.singletonList(new SNIHostName(host));
        parameters.setServerNames(names);
        socket.setSSLParameters(parameters);
        socket.startHandshake();
        socket.close();
    }
}
